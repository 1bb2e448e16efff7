//! Severity of an alert.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Minor = 1,
    Major = 2,
    Critical = 3,
}

impl Severity {
    /// Our own words and other tools' (`warning` → minor, `error` → major, `page`, `emergency` → critical).
    /// `info` and unknown words are no severity: they make an event only.
    pub fn from_label(value: &str) -> Option<Self> {
        match value.to_ascii_lowercase().as_str() {
            "minor" | "warning" => Some(Self::Minor),
            "major" | "error" => Some(Self::Major),
            "critical" | "page" | "emergency" => Some(Self::Critical),
            _ => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minor => "minor",
            Self::Major => "major",
            Self::Critical => "critical",
        }
    }

    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

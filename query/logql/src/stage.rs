//! The stages of a pipeline as they are written.

use crate::filter::LineFilter;
use crate::label_filter::{LabelFilter, write_matcher};
use hindcast_model::Matcher;
use hindcast_promql::quoted;
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    Line(LineFilter),
    /// No extractions: everything.
    Json(Vec<Extraction>),
    Logfmt {
        strict: bool,
        keep_empty: bool,
        extractions: Vec<Extraction>,
    },
    Pattern(String),
    Regexp(String),
    Unpack,
    Labels(LabelFilter),
    LineFormat(String),
    LabelFormat(Vec<LabelFormat>),
    Drop(Vec<Pick>),
    Keep(Vec<Pick>),
    Decolorize,
}

/// `label="path"`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extraction {
    pub label: String,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelFormat {
    Rename { to: String, from: String },
    Template { label: String, template: String },
}

/// A label that is dropped or kept, maybe only with some values.
#[derive(Clone, Debug, PartialEq)]
pub enum Pick {
    Name(String),
    Matching(Matcher),
}

impl Pick {
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Matching(matcher) => &matcher.name,
        }
    }

    pub fn picks(&self, name: &str, value: &str) -> bool {
        match self {
            Self::Name(n) => n == name,
            Self::Matching(m) => m.name == name && m.matches_value(value),
        }
    }
}

impl Stage {
    /// Whether the line is still the same afterwards, if it goes on: filters of lines may then move before the stage.
    pub fn keeps_line(&self) -> bool {
        !matches!(self, Self::LineFormat(_) | Self::Unpack | Self::Decolorize)
    }
}

fn write_list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    write: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        f.write_str(if i == 0 { " " } else { ", " })?;
        write(f, item)?;
    }
    Ok(())
}

fn write_extraction(f: &mut fmt::Formatter<'_>, e: &Extraction) -> fmt::Result {
    write!(f, "{}={}", e.label, quoted(&e.path))
}

fn write_pick(f: &mut fmt::Formatter<'_>, p: &Pick) -> fmt::Result {
    match p {
        Pick::Name(name) => f.write_str(name),
        Pick::Matching(m) => write_matcher(f, m),
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(filter) => write!(f, "{filter}"),
            Self::Json(extractions) => {
                f.write_str("| json")?;
                write_list(f, extractions, write_extraction)
            }
            Self::Logfmt {
                strict,
                keep_empty,
                extractions,
            } => {
                f.write_str("| logfmt")?;
                f.write_str(if *strict { " --strict" } else { "" })?;
                f.write_str(if *keep_empty { " --keep-empty" } else { "" })?;
                write_list(f, extractions, write_extraction)
            }
            Self::Pattern(p) => write!(f, "| pattern {}", quoted(p)),
            Self::Regexp(r) => write!(f, "| regexp {}", quoted(r)),
            Self::Unpack => f.write_str("| unpack"),
            Self::Labels(filter) => write!(f, "| {filter}"),
            Self::LineFormat(t) => write!(f, "| line_format {}", quoted(t)),
            Self::LabelFormat(formats) => {
                f.write_str("| label_format")?;
                write_list(f, formats, |f, format| match format {
                    LabelFormat::Rename { to, from } => write!(f, "{to}={from}"),
                    LabelFormat::Template { label, template } => write!(f, "{label}={}", quoted(template)),
                })
            }
            Self::Drop(picks) => {
                f.write_str("| drop")?;
                write_list(f, picks, write_pick)
            }
            Self::Keep(picks) => {
                f.write_str("| keep")?;
                write_list(f, picks, write_pick)
            }
            Self::Decolorize => f.write_str("| decolorize"),
        }
    }
}

//! The corpus of bad input: `chaos-tests/corpus`, a folder per surface, a file per case.
//!
//! A case says what is sent, and what comes of it; `chaos-tests/corpus/README.md` says how it is written. This crate reads the files
//! and makes the bytes; it sends nothing. The decoders' share of the cases are seeds of `hindcast-fuzz`, and all of them meet a live node in
//! `chaos-tests/tests/process_corpus.rs`.

pub mod case;
pub mod expand;
pub mod fields;

pub use case::{Case, Check, Modifier, Send, Surface, load};

use std::path::{Path, PathBuf};

/// What reliability asks of every surface; each has cases of a row, or says why none applies.
pub const ROWS: &[(&str, &str)] = &[
    (
        "edge",
        "wrong method, path, type, encoding, length or tenant; a body that is missing or too large",
    ),
    (
        "malformed",
        "truncated or nested without end, invalid UTF-8, lengths that lie, unknown enums, duplicate keys",
    ),
    ("bomb", "small on the wire, huge once it is decompressed"),
    (
        "limits",
        "names, values, lines, counts of labels or numbers beyond their bounds",
    ),
    (
        "values-and-times",
        "NaN, infinities, times of the wrong unit, of the future, of the past, out of order, twice",
    ),
    ("cardinality", "more series than a tenant may have"),
    ("query-cost", "queries that would read, compute or answer without end"),
    (
        "slow-connections",
        "heads and bodies that stall, floods of headers, frames that are cut",
    ),
    (
        "control-characters",
        "CR, LF, NUL and odd Unicode where a header or a name could be injected",
    ),
    ("mentions", "Slack's mentions, links and markup in texts"),
    ("markup", "HTML, scripts and formulas in texts"),
    ("addresses", "URLs that point inside"),
    ("paths", "names that are paths"),
    ("templates", "templates without end, or broken ones"),
    (
        "configuration",
        "aliases without end, unknown keys, cycles, secrets in what is shown",
    ),
];

/// Where the corpus lies in this checkout.
pub fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../chaos-tests/corpus")
}

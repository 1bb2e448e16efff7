//! PromQL: lexer, parser, type check, printer. Pure; no evaluation here.
//!
//! Promises
//! - Any text either parses or is refused with the line and column of what is wrong; nothing panics.
//! - `parse(&expr.to_string())` gives the same tree, for every tree that `parse` gave.
//! - A tree is at most [`DEPTH_MAX`] deep, so that recursion over it is safe.
//!
//! Lengths of time are whole milliseconds (`i64`), PromQL's resolution. Deliberately absent: syntax that Prometheus
//! hides behind feature flags (`anchored`, `fill`).

pub mod ast;
mod durations;
pub mod functions;
pub mod lexer;
mod parser;
mod print;

pub use ast::{
    AggregateOp, At, BinaryOp, Cardinality, Expr, Grouping, Kind, Literal, Matching, Selector, Span, ValueType,
};
pub use durations::QueryRange;
pub use functions::Function;
pub use parser::{DEPTH_MAX, ParseError, parse, parse_selector, parse_within};
pub use print::{quoted, write_number};

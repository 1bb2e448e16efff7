//! Chores as functions, so that tests can run them.

pub mod prove;
pub mod tidy;

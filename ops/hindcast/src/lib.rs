//! The hindcast binary as a library: command line, configuration, wiring.

pub mod cli;

//! The hindcast binary: command line, configuration, wiring

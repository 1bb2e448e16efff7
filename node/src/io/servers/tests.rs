//! Servers over a recording sink.

//! The web UI, built and embedded

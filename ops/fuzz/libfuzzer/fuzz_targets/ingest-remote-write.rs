//! The target `ingest-remote-write` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("ingest-remote-write", data));

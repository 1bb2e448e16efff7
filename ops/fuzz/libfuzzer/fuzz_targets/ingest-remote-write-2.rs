//! The target `ingest-remote-write-2` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("ingest-remote-write-2", data));

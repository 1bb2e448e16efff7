//! The target `ingest-tsdb-chunk` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("ingest-tsdb-chunk", data));

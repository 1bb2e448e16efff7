//! The target `ingest-otlp-traces-json` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("ingest-otlp-traces-json", data));

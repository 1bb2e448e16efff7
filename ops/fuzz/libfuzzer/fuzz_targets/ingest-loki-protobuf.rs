//! The target `ingest-loki-protobuf` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("ingest-loki-protobuf", data));

//! The target `storage-log-segment` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("storage-log-segment", data));

//! The target `storage-metric-segment` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("storage-metric-segment", data));

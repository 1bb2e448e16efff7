//! The target `storage-line-metadata` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("storage-line-metadata", data));

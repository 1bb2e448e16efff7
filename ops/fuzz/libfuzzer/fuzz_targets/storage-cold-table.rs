//! The target `storage-cold-table` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("storage-cold-table", data));

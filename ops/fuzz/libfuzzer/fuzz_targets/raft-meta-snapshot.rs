//! The target `raft-meta-snapshot` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hindcast_fuzz::run("raft-meta-snapshot", data));

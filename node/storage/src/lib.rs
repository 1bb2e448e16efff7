//! Memtable, segments, retention, pins and read views of one shard

pub mod read;

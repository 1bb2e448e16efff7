//! Plan, execute, gather; replay; Prometheus and Loki APIs

pub mod shards;

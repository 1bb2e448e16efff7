//! Wire messages and services of `hindcast.v1`, and their conversions to the glossary's types.
//!
//! Wire types stay at the edges: a crate's core never sees them.

pub mod edge;
pub mod history;
pub mod metric_info;
pub mod native;
pub mod topology;
pub mod trace;

/// Generated from `proto/hindcast/v1/*.proto`.
#[allow(clippy::all, missing_docs, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("hindcast.v1");
}

/// All message and service descriptors, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

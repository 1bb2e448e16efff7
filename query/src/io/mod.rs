//! The outside world of this crate: gRPC and HTTP.

mod federate;
pub mod grpc;
pub mod http;
mod json;
pub mod loki;
mod loki_explore;
mod params;
mod remote_read;
pub mod replay;
mod rows;
mod status;
mod tail;

pub use grpc::query_service;
pub use http::prometheus_router;
pub use loki::loki_router;

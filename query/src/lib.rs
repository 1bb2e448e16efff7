//! Queries over the shards: PromQL and LogQL, evaluated in a fixed order of summation; the Prometheus and Loki APIs.
//!
//! Pure but for `io/`: the data comes through the seam [`shards::Shards`], which `ops/hindcast` and the simulator fill.

pub mod column;
pub mod engine;
pub mod eval;
pub mod exemplars;
pub mod explore;
mod fetch;
pub mod fold;
pub mod gather;
pub mod io;
mod load;
mod logs;
mod natives;
pub mod number;
mod pages;
mod piped;
pub mod plan;
pub mod reduce;
pub mod replay;
pub mod replica;
pub mod rows;
pub mod shards;
pub mod tail;
pub mod testing;
pub mod value;
pub mod wire;

pub use engine::{Engine, InstantQuery, LabelsQuery, Limits, LogsQuery, OWNER_LABEL, Options, QueryError, RangeQuery};
pub use value::{Answer, LogStream, LogsValue, MatrixSeries, Value, VectorSample};

//! Real nodes as processes: what their operators do with them, and what befalls them. One program, since each is linked for long, and since
//! these tests mostly wait.

mod agent;
mod cold;
mod copies;
mod membership;
mod repair;
mod rollup;
mod stale;
mod storage;
mod tls;

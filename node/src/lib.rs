//! One node: routing, write path, shard machine, peer transport, write servers.
//!
//! Pure: what an entry means (`entry`, `shard_machine`, `dedup`, `auxiliary`), where data goes (`route`), the cluster's rows
//! (`cluster_part`, `node_rows`), what brings groups nearer to what is wished of nodes (`membership`), whose clock counts
//! (`cluster_time`), whether the disk has room (`disk_guard`) and memory (`memory_guard`), who a certificate lets in
//! (`certificate`), what goes on beside the
//! applies (`beside`), when old files are moved (`cold_moves`). Everything that waits lives in `io`.

mod auxiliary;
mod beside;
pub mod certificate;
pub mod cluster_part;
pub mod cluster_time;
pub mod codec;
pub mod cold_moves;
pub mod dedup;
pub mod disk_guard;
pub mod entry;
#[doc(hidden)]
pub mod fuzz;
pub mod io;
pub mod membership;
pub mod memory_guard;
pub mod node_rows;
pub mod pace;
pub mod placement;
pub mod route;
pub mod shard_machine;
pub mod sources;
pub mod window;
pub mod write;

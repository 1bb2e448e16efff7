//! Compiles `proto/` without a `protoc`: protox parses, prost and tonic generate.

use prost::Message;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("proto");
    let names = [
        "common", "ingest", "query", "replay", "alerts", "desk", "cluster", "peer",
    ];
    let files: Vec<_> = names
        .iter()
        .map(|n| root.join(format!("hindcast/v1/{n}.proto")))
        .collect();
    println!("cargo::rerun-if-changed=proto");
    let set = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    #[allow(clippy::disallowed_methods, reason = "a build script writes its output")]
    std::fs::write(out.join("descriptor.bin"), set.encode_to_vec())?;
    // Payloads become `Bytes` and are sliced from the receive buffer, never copied.
    tonic_prost_build::configure().bytes(".").compile_fds(set)?;
    Ok(())
}

//! Type check and unit tests of `ui/`, where its packages are installed: after a build with npm.

use std::path::PathBuf;
use std::process::Command;

/// Runs a script of `ui/` with node; `None` when this build has no UI.
fn node(arguments: &[&str]) -> Option<()> {
    if !hindcast_web::is_built() {
        println!("skipped: this build has no web UI");
        return None;
    }
    let ui = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("ui");
    let output = Command::new("node")
        .args(arguments)
        .current_dir(ui)
        .output()
        .expect("node built the UI");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    Some(())
}

#[test]
fn the_sources_pass_the_type_check() {
    node(&["node_modules/typescript/bin/tsc", "--noEmit"]);
}

#[test]
fn the_unit_tests_pass() {
    node(&["test/run.mjs"]);
}

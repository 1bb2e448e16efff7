//! Builds `ui/` with npm and Vite into `OUT_DIR`, compresses it, and writes a table of it for `lib.rs`.
//!
//! `HINDCAST_UI=require` fails where npm fails (for CI and releases), `skip` never runs npm (for Rust-only work),
//! anything else falls back to a page that says so. Nothing is written into the tree but the ignored `node_modules`.
#![allow(
    clippy::disallowed_methods,
    reason = "a build script is a tool: no seam stands between it and the file system"
)]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let (ui, dist) = (here.join("ui"), out.join("dist"));
    for name in [
        "src",
        "public",
        "index.html",
        "package.json",
        "package-lock.json",
        "vite.config.ts",
        "tsconfig.json",
    ] {
        println!("cargo::rerun-if-changed={}", ui.join(name).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=placeholder.html");
    println!("cargo::rerun-if-env-changed=HINDCAST_UI");
    let mode = std::env::var("HINDCAST_UI").unwrap_or_default();
    let built = match mode.as_str() {
        "skip" => Err("HINDCAST_UI=skip".into()),
        _ => bundle(&ui, &dist),
    };
    let is_built = built.is_ok();
    if let Err(why) = built {
        assert!(mode != "require", "the web UI was not built: {why}");
        println!("cargo::warning=the web UI was not built ({why}); the server will serve a page that says so");
        // Absent on purpose: cargo tries again next time, when npm may be there.
        println!("cargo::rerun-if-changed={}", out.join("retry").display());
        place_placeholder(&here, &dist)?;
    }
    fs::write(out.join("assets.rs"), table(&dist, &out.join("gzip"), is_built)?)?;
    Ok(())
}

fn bundle(ui: &Path, dist: &Path) -> Fallible<()> {
    // Two cargo runs may build into different folders at the same time; `node_modules` is one.
    let lock = fs::File::create(ui.join(".build-lock"))?;
    lock.lock()?;
    let installed = modified(&ui.join("node_modules/.package-lock.json"));
    if installed.is_none() || installed < modified(&ui.join("package-lock.json")) {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]);
        run(npm.current_dir(ui), "npm ci")?;
    }
    let mut vite = Command::new("node");
    vite.arg("node_modules/vite/bin/vite.js")
        .args(["build", "--emptyOutDir", "--logLevel", "warn", "--outDir"])
        .arg(dist);
    run(vite.current_dir(ui), "vite build")
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn run(command: &mut Command, what: &str) -> Fallible<()> {
    let output = command.output().map_err(|e| format!("{what} cannot be run: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    // A warning is one line for cargo.
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = said.lines().filter(|l| !l.starts_with("npm warn")).take(6).collect();
    Err(format!("{what} failed with {}: {}", output.status, said.join(" / ")).into())
}

fn place_placeholder(here: &Path, dist: &Path) -> Fallible<()> {
    if dist.exists() {
        fs::remove_dir_all(dist)?;
    }
    fs::create_dir_all(dist)?;
    fs::copy(here.join("placeholder.html"), dist.join("index.html"))?;
    Ok(())
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) -> Fallible<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files(&path, found)?,
            false => found.push(path),
        }
    }
    Ok(())
}

/// The source of the table, sorted by path so that it can be searched.
fn table(dist: &Path, gzip: &Path, is_built: bool) -> Fallible<String> {
    fs::create_dir_all(gzip)?;
    let mut found = Vec::new();
    files(dist, &mut found)?;
    let mut rows = Vec::new();
    for file in found {
        let parts: Vec<_> = file.strip_prefix(dist)?.iter().map(|p| p.to_string_lossy()).collect();
        rows.push((format!("/{}", parts.join("/")), file));
    }
    rows.sort();
    let mut source = format!("pub static BUILT: bool = {is_built};\npub static ASSETS: &[Asset] = &[\n");
    for (path, file) in rows {
        let raw = fs::read(&file)?;
        let hash = blake3::hash(&raw).to_hex();
        let packed = gzip.join(&hash.as_str()[..32]);
        fs::write(&packed, compressed(&raw)?)?;
        let content_type = content_type(&path);
        let immutable = path.starts_with("/assets/");
        let etag = format!("\"{}\"", &hash.as_str()[..16]);
        source += &format!(
            "    Asset {{ path: {path:?}, raw: include_bytes!({file:?}), gzip: include_bytes!({packed:?}), \
             content_type: {content_type:?}, immutable: {immutable}, etag: {etag:?} }},\n"
        );
    }
    Ok(source + "];\n")
}

fn compressed(raw: &[u8]) -> Fallible<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(raw)?;
    Ok(encoder.finish()?)
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "json" => "application/json",
        "png" => "image/png",
        "txt" => "text/plain; charset=utf-8",
        other => panic!("{path}: no content type is known for .{other}; add one to build.rs"),
    }
}

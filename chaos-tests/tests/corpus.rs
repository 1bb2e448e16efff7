//! What is true of the corpus itself: no surface of the server is without cases, and no surface is without a row of the table.

#![allow(clippy::disallowed_methods, reason = "a test reads the tree it checks")]

use anyhow::{Context, Result};
use hindcast_corpus::{ROWS, Send, Surface, dir, load};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn surfaces() -> Result<Vec<Surface>> {
    load(&dir(), 1_700_000_000_000)
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// The first argument of every `.route(…)` in a source, up to its tests.
fn routes_in(source: &str) -> Result<Vec<String>> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut routes = vec![];
    for after in source.split(".route(").skip(1) {
        // The gateway has a `route` that takes labels.
        let Some(literal) = after.trim_start().strip_prefix('"') else {
            anyhow::ensure!(
                after.starts_with("&routing_labels"),
                "a route whose path is not written where it is made: {:?}",
                after.lines().next()
            );
            continue;
        };
        routes.push(literal.split('"').next().context("a path")?.to_owned());
    }
    Ok(routes)
}

/// Everything that a client of the server can ask for: HTTP paths and gRPC methods.
fn served() -> Result<BTreeSet<String>> {
    let mut files = vec![];
    for folder in [
        "node/src",
        "query/src",
        "alerting/src",
        "itsm/src",
        "ops/hindcast/src/server",
    ] {
        sources(&root().join(folder), &mut files)?;
    }
    let mut served = BTreeSet::new();
    for file in files.iter().filter(|f| !f.ends_with("tests.rs")) {
        let source = std::fs::read_to_string(file)?;
        served.extend(routes_in(&source).with_context(|| file.display().to_string())?);
        for name in source
            .split('"')
            .filter(|t| t.starts_with("opentelemetry.proto.collector."))
        {
            served.insert(format!("/{name}/Export"));
        }
    }
    for entry in std::fs::read_dir(root().join("proto/proto/hindcast/v1"))? {
        let path = entry?.path();
        // Nodes speak it among themselves, on a port of their own.
        if path.ends_with("peer.proto") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let mut service = "";
        for line in text.lines() {
            let mut words = line.split([' ', '(', '{']).filter(|w| !w.is_empty());
            match (words.next(), words.next()) {
                (Some("service"), Some(name)) => service = name,
                (Some("rpc"), Some(method)) => {
                    served.insert(format!("/hindcast.v1.{service}/{method}"));
                }
                _ => {}
            }
        }
    }
    Ok(served)
}

/// Whether a request for `target` is one for `route`.
fn is_for(route: &str, target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let (mut wanted, mut got) = (route.split('/'), path.split('/'));
    loop {
        match (wanted.next(), got.next()) {
            (None, None) => return true,
            (Some(w), Some(g)) if w == g || w.starts_with('{') => {}
            _ => return false,
        }
    }
}

#[test]
fn every_path_and_method_of_the_server_has_a_surface_and_a_case() -> Result<()> {
    let surfaces = surfaces()?;
    let mut named = BTreeMap::<&str, Vec<&str>>::new();
    for surface in &surfaces {
        for route in &surface.routes {
            named.entry(route).or_default().push(&surface.name);
        }
    }
    let served = served()?;
    assert!(served.len() > 60, "routes are not found any more: {served:?}");
    let unnamed: Vec<_> = served.iter().filter(|r| !named.contains_key(r.as_str())).collect();
    assert!(
        unnamed.is_empty(),
        "no surface of chaos-tests/corpus names {unnamed:#?}"
    );
    let gone: Vec<_> = named.keys().filter(|r| !served.contains(**r)).collect();
    assert!(gone.is_empty(), "no such routes: {gone:?}");
    let twice: Vec<_> = named.iter().filter(|(_, s)| s.len() > 1).collect();
    assert!(twice.is_empty(), "of two surfaces: {twice:?}");

    let targets: Vec<&str> = surfaces
        .iter()
        .flat_map(|s| &s.cases)
        .filter_map(|c| match &c.send {
            Send::Http(_, target) | Send::Grpc(target) => Some(target.as_str()),
            _ => None,
        })
        .collect();
    // What a scrape and a command ask for by themselves.
    let untried: Vec<_> = named
        .keys()
        .filter(|route| !targets.iter().any(|t| is_for(route, t)))
        .filter(|route| !["/api/v1/targets", "/hindcast.v1.Replay/Play"].contains(route))
        .collect();
    assert!(untried.is_empty(), "no case asks for {untried:#?}");
    Ok(())
}

#[test]
fn every_surface_has_a_case_of_each_row_or_says_why_not() -> Result<()> {
    let mut wrong = vec![];
    for surface in surfaces()? {
        for (row, _) in ROWS {
            let cases = surface.cases.iter().filter(|c| c.row == *row).count();
            let is_without = surface.without.iter().any(|(r, _)| r == row);
            match (cases, is_without) {
                (0, false) => wrong.push(format!("{}: no case of the row {row}, and no word why", surface.name)),
                (n, true) if n > 0 => wrong.push(format!(
                    "{}: {n} cases of {row}, which it says it has not",
                    surface.name
                )),
                _ => {}
            }
        }
        for (row, _) in &surface.without {
            if !ROWS.iter().any(|(r, _)| r == row) {
                wrong.push(format!("{}: {row} is no row", surface.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_path_with_a_name_in_it_is_asked_for_by_any_name() {
    assert!(is_for("/api/v1/label/{name}/values", "/api/v1/label/a%0a/values?x=1"));
    assert!(!is_for("/api/v1/label/{name}/values", "/api/v1/label/a"));
    assert!(routes_in("a.route(x, y)").is_err());
}

//! What keeps the walls where `ARCHITECTURE.md` puts them.
//!
//! - Folder order: a crate uses only crates of its own folder or of folders to its left.
//! - Purity: sockets, files, clocks, threads and the libraries that bring them are named in `src/io/` alone.
//! - Every crate and module says in its first line what it is for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Data flows left to right.
const FOLDERS: &[&str] = &["proto", "node", "query", "alerting", "itsm", "ops", "chaos-tests"];

/// Which of our crates each may name, beyond the folder order: `ARCHITECTURE.md`'s table, spelled out.
const MAY_USE: &[(&str, &[&str])] = &[
    ("hindcast-model", &[]),
    ("hindcast-proto", &["hindcast-model"]),
    ("hindcast-env", &["hindcast-model"]),
    ("hindcast-storage", &["hindcast-model", "hindcast-env"]),
    ("hindcast-raft", &["hindcast-model", "hindcast-env"]),
    ("hindcast-masking", &["hindcast-model", "hindcast-env"]),
    (
        "hindcast-ingest",
        &["hindcast-model", "hindcast-proto", "hindcast-env", "hindcast-masking"],
    ),
    ("hindcast-scrape", &["hindcast-model", "hindcast-env"]),
    ("hindcast-snmp", &["hindcast-model", "hindcast-env"]),
    ("hindcast-kafka", &["hindcast-model", "hindcast-env", "hindcast-ingest"]),
    ("hindcast-promql", &["hindcast-model"]),
    // The two languages share a lexer, operators and durations.
    ("hindcast-logql", &["hindcast-model", "hindcast-promql"]),
    (
        "hindcast-query",
        &[
            "hindcast-model",
            "hindcast-proto",
            "hindcast-env",
            "hindcast-storage",
            "hindcast-promql",
            "hindcast-logql",
        ],
    ),
    ("hindcast-web", &[]),
    ("hindcast-bench", &["hindcast-model", "hindcast-proto"]),
    ("hindcast-corpus", &[]),
    ("xtask", &[]),
];

/// Words that only a door may speak, and what to do instead.
const OUTSIDE: &[(&str, &str)] = &[
    ("tokio::", "move it to src/io"),
    ("tokio_stream::", "move it to src/io"),
    ("tonic::", "move it to src/io"),
    ("hyper::", "move it to src/io"),
    ("hyper_util::", "move it to src/io"),
    ("axum::", "move it to src/io"),
    ("lettre::", "move it to src/io"),
    ("slack_morphism::", "move it to src/io"),
    ("sled::", "move it to src/io"),
    ("std::fs", "take a hindcast_env::Disk"),
    // Addresses are values; sockets are not.
    ("TcpStream", "move it to src/io"),
    ("TcpListener", "move it to src/io"),
    ("UdpSocket", "move it to src/io"),
    ("ToSocketAddrs", "move it to src/io"),
    ("std::thread", "move it to src/io"),
    ("thread::spawn", "move it to src/io"),
    ("SystemTime", "take a hindcast_env::Clock"),
    ("Instant::now", "take a hindcast_env::Clock"),
    ("std::env::var", "take it as a parameter"),
    ("std::process::Command", "move it to src/io"),
];

/// Folders whose whole business is the outside: the binary, its tools, and tests on real processes.
/// `hindcast-proto` is generated for tonic.
const EXEMPT: &[&str] = &["proto/src/", "ops/", "chaos-tests/"];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub file: String,
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Path (with `/`, from the root) → text.
pub type Tree = BTreeMap<String, String>;

/// The workspace's root, from where this crate was built.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Manifests and Rust sources of the workspace.
pub fn read_tree(root: &Path) -> std::io::Result<Tree> {
    let mut tree = Tree::new();
    let mut dirs: Vec<PathBuf> = FOLDERS.iter().map(|f| root.join(f)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type()?.is_dir() {
                if name != "node_modules" && name != "target" {
                    dirs.push(path);
                }
            } else if name == "Cargo.toml" || path.extension().is_some_and(|e| e == "rs") {
                let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                #[allow(clippy::disallowed_methods, reason = "a chore reads the tree it checks")]
                tree.insert(relative, String::from_utf8_lossy(&std::fs::read(&path)?).into_owned());
            }
        }
    }
    Ok(tree)
}

fn folder(path: &str) -> Option<usize> {
    let first = path.split('/').next()?;
    FOLDERS.iter().position(|f| *f == first)
}

/// Everything that is out of place.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = vec![];
    check_order(tree, &mut findings);
    for (path, text) in tree.iter().filter(|(p, _)| p.ends_with(".rs")) {
        check_purity(path, text, &mut findings);
        check_doc(path, text, &mut findings);
    }
    findings.sort();
    findings
}

fn check_order(tree: &Tree, findings: &mut Vec<Finding>) {
    let manifests: Vec<(&String, toml::Table)> = tree
        .iter()
        .filter(|(p, _)| p.ends_with("Cargo.toml"))
        .filter_map(|(p, text)| Some((p, text.parse().ok()?)))
        .collect();
    let name_of = |t: &toml::Table| t.get("package")?.get("name")?.as_str().map(str::to_owned);
    let home: BTreeMap<String, usize> = manifests
        .iter()
        .filter_map(|(p, t)| Some((name_of(t)?, folder(p)?)))
        .collect();
    for (path, table) in &manifests {
        let (Some(name), Some(own)) = (name_of(table), folder(path)) else {
            continue;
        };
        let may = MAY_USE.iter().find(|(n, _)| *n == name).map(|(_, may)| *may);
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let Some(deps) = table.get(section).and_then(|d| d.as_table()) else {
                continue;
            };
            for dep in deps.keys() {
                let Some(&theirs) = home.get(dep) else { continue };
                let line = tree[*path]
                    .lines()
                    .position(|l| l.starts_with(dep.as_str()))
                    .map_or(1, |n| n + 1);
                let mut find = |what: String| {
                    findings.push(Finding {
                        file: (*path).clone(),
                        line,
                        what,
                    })
                };
                if theirs > own {
                    find(format!(
                        "{name} ({}) uses {dep} ({}), which lies to its right",
                        FOLDERS[own], FOLDERS[theirs]
                    ));
                } else if may.is_some_and(|may| !may.contains(&dep.as_str())) && section != "dev-dependencies" {
                    find(format!(
                        "{name} uses {dep}, which its row of the crate table does not allow"
                    ));
                }
            }
        }
    }
}

/// Where the tests of a file begin: they may use the outside.
fn code_only(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let tests = text
        .lines()
        .position(|l| l.trim_start().starts_with("#[cfg(test)]"))
        .unwrap_or(usize::MAX);
    text.lines()
        .enumerate()
        .take(tests)
        .filter(|(_, l)| !l.trim_start().starts_with("//"))
}

fn check_purity(path: &str, text: &str, findings: &mut Vec<Finding>) {
    let exempt = EXEMPT.iter().any(|e| path.starts_with(e));
    let is_test = path.ends_with("/tests.rs");
    if exempt || is_test || !path.contains("/src/") || path.contains("/src/io/") || path.contains("/src/bin/") {
        return;
    }
    for (n, line) in code_only(text) {
        for (word, instead) in OUTSIDE {
            let named = line.match_indices(word).any(|(at, _)| {
                let before = &line[..at];
                // `mytokio::` is another word, and OTLP's plain messages live in a module that is called `tonic`.
                !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    && !before.ends_with("opentelemetry_proto::")
            });
            if named {
                let what = format!("`{word}` belongs to the outside: {instead}");
                findings.push(Finding {
                    file: path.to_owned(),
                    line: n + 1,
                    what,
                });
            }
        }
    }
}

fn check_doc(path: &str, text: &str, findings: &mut Vec<Finding>) {
    if path.contains("/src/") && !text.starts_with("//!") {
        let what = "a module begins with `//!` and what it decides or promises".to_owned();
        findings.push(Finding {
            file: path.to_owned(),
            line: 1,
            what,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, deps: &[&str]) -> String {
        let deps: String = deps.iter().map(|d| format!("{d}.workspace = true\n")).collect();
        format!("[package]\nname = \"{name}\"\n\n[dependencies]\n{deps}")
    }

    fn findings(files: &[(&str, String)]) -> Vec<String> {
        let tree = files.iter().map(|(p, t)| ((*p).to_owned(), t.clone())).collect();
        check(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn this_tree_is_tidy() {
        let found = check(&read_tree(&root()).unwrap());
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "\n{}", shown.join("\n"));
    }

    #[test]
    fn an_arrow_that_turns_round_is_found() {
        let found = findings(&[
            ("query/Cargo.toml", manifest("hindcast-query", &["hindcast-alerting"])),
            (
                "alerting/Cargo.toml",
                manifest("hindcast-alerting", &["hindcast-query"]),
            ),
        ]);
        let expected =
            "query/Cargo.toml:5: hindcast-query (query) uses hindcast-alerting (alerting), which lies to its right";
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_crate_outside_its_row_is_found() {
        let found = findings(&[
            ("node/raft/Cargo.toml", manifest("hindcast-raft", &["hindcast-storage"])),
            ("node/storage/Cargo.toml", manifest("hindcast-storage", &[])),
        ]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("its row of the crate table"));
    }

    #[test]
    fn the_outside_is_found_in_a_pure_module_and_nowhere_else() {
        for (word, _) in OUTSIDE {
            let code = format!("//! Doc.\nfn f() {{ {word}x }}\n");
            assert_eq!(
                findings(&[("node/storage/src/shard.rs", code.clone())]).len(),
                1,
                "{word}"
            );
            assert_eq!(
                findings(&[("node/storage/src/io/files.rs", code.clone())]).len(),
                0,
                "{word}"
            );
            let tested = format!("//! Doc.\n#[cfg(test)]\nmod tests {{ fn f() {{ {word}x }} }}\n");
            assert_eq!(findings(&[("node/storage/src/shard.rs", tested)]).len(), 0, "{word}");
            let comment = format!("//! Doc.\n// {word}x is why\n");
            assert_eq!(findings(&[("node/storage/src/shard.rs", comment)]).len(), 0, "{word}");
        }
    }

    #[test]
    fn a_module_without_a_word_about_itself_is_found() {
        assert_eq!(findings(&[("node/src/a.rs", "fn f() {}\n".to_owned())]).len(), 1);
    }
}

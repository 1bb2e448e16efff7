//! Rule and route files on their way into the meta group: read at start and at `POST /-/reload`.

use super::config::ServerConfig;
use hindcast_alerting::command::{GATEWAY_PART, GatewayCommand};
use hindcast_alerting::{route, rows, rule};
use hindcast_model::{Class, TenantId};
use hindcast_raft::{Meta, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A file that cannot be used; the one in force stays.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{path} cannot be read: {why}")]
    Unreadable { path: String, why: String },
    #[error("no file matches {0:?}; name the rule files, or leave --rules out")]
    NoMatch(String),
    #[error("{first} and {second} have the same name: rules are known by the name of their file; rename one of them")]
    SameName { first: String, second: String },
    #[error("{0}")]
    Rules(#[from] rule::RuleFileError),
    #[error("{0}")]
    Routes(#[from] route::RoutesFileError),
}

/// The commands that put the configured files in force. Nothing is sent yet: one broken file, and none counts.
pub fn read(config: &ServerConfig) -> Result<Vec<GatewayCommand>, FilesError> {
    let mut commands = vec![];
    let mut named = BTreeMap::<String, String>::new();
    // Routes first: an alert that fires in the same second already finds its receivers.
    if let Some(path) = &config.routes {
        let text = text_of(path)?;
        let routes = route::parse(&path.display().to_string(), &text)?;
        commands.push(GatewayCommand::SetRoutes {
            tenant: None,
            revision: rule::revision(&text),
            routes,
        });
    }
    for pattern in &config.rules {
        let files = matching(pattern)?;
        if files.is_empty() {
            return Err(FilesError::NoMatch(pattern.clone()));
        }
        for path in files {
            let text = text_of(&path)?;
            let shown = path.display().to_string();
            let file = rule::parse(&shown, &text)?;
            // The file's name, not its path: nodes may keep the same file in different folders.
            let source = path
                .file_name()
                .map_or(shown.clone(), |n| n.to_string_lossy().into_owned());
            if let Some(first) = named.insert(source.clone(), shown.clone()) {
                return Err(FilesError::SameName { first, second: shown });
            }
            commands.push(GatewayCommand::SetRules {
                tenant: TenantId::default(),
                source,
                revision: rule::revision(&text),
                groups: file.groups,
            });
        }
    }
    Ok(commands)
}

/// Proposes the commands; those that are in force already change nothing.
pub async fn put_in_force(meta: &dyn Meta, commands: Vec<GatewayCommand>) -> Result<(), hindcast_raft::MetaError> {
    for command in commands {
        meta.propose(GATEWAY_PART, command.encode()).await?;
    }
    Ok(())
}

/// The same, and sources whose file is configured no more go: a reload leaves exactly what the files say.
pub async fn replace(
    meta: &dyn Meta,
    config: &ServerConfig,
    mut commands: Vec<GatewayCommand>,
) -> Result<(), hindcast_raft::MetaError> {
    let tenant = TenantId::default();
    // A node that was given no rule files knows nothing of those of the others.
    if !config.rules.is_empty() {
        let read = meta.read().await?;
        let kept: BTreeSet<String> = commands.iter().filter_map(source_of).collect();
        let known = rows::rule_sources(&*read, &tenant);
        let known = known.map_err(|e| Refusal::new(Class::Internal, e.to_string()))?;
        for gone in known.into_iter().filter(|s| !kept.contains(&s.source)) {
            commands.push(GatewayCommand::SetRules {
                tenant: tenant.clone(),
                source: gone.source,
                revision: rule::revision(""),
                groups: vec![],
            });
        }
    }
    put_in_force(meta, commands).await
}

fn source_of(command: &GatewayCommand) -> Option<String> {
    match command {
        GatewayCommand::SetRules { source, .. } => Some(source.clone()),
        _ => None,
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "files that an operator names are read where they are"
)]
fn text_of(path: &Path) -> Result<String, FilesError> {
    let unreadable = |why: String| FilesError::Unreadable {
        path: path.display().to_string(),
        why,
    };
    let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8 text".to_owned()))
}

/// Files whose name fits; `*` stands for any characters in the last part of the path.
fn matching(pattern: &str) -> Result<Vec<PathBuf>, FilesError> {
    let path = Path::new(pattern);
    let name = path
        .file_name()
        .map_or(String::new(), |n| n.to_string_lossy().into_owned());
    if !name.contains('*') {
        return Ok(vec![path.to_owned()]);
    }
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let unreadable = |e: std::io::Error| FilesError::Unreadable {
        path: dir.display().to_string(),
        why: e.to_string(),
    };
    let mut files = vec![];
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if fits(&name, &entry.file_name().to_string_lossy()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Whether `name` fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len())
                .filter(|i| tail.is_char_boundary(*i))
                .any(|i| fits(rest, &tail[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::config::ServerArgs;
    use hindcast_alerting::GatewayPart;
    use hindcast_raft::LocalMeta;

    #[test]
    fn a_star_stands_for_any_characters() {
        assert!(fits("*.yml", "a.yml") && fits("a*b*c", "axxbyc") && fits("*", "") && fits("a", "a"));
        assert!(!fits("*.yml", "a.yaml") && !fits("a*", "b") && !fits("a", "ab"));
    }

    #[tokio::test]
    async fn a_rule_file_that_was_deleted_is_not_in_force_after_a_reload() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        for (name, rule) in [("a.yml", "A"), ("b.yml", "B")] {
            let text = format!("groups: [{{name: g, rules: [{{alert: {rule}, expr: up == 0}}]}}]");
            #[allow(clippy::disallowed_methods, reason = "a test's own file")]
            std::fs::write(file(name), text).unwrap();
        }
        let args = ServerArgs {
            rules: vec![file("*.yml").display().to_string()],
            ..ServerArgs::default()
        };
        let config = args.resolve().unwrap();
        let meta = LocalMeta::new(vec![Box::new(GatewayPart)]);
        let sources = || {
            let known = rows::rule_sources(&*meta.stale(), &TenantId::default()).unwrap();
            known.into_iter().map(|s| s.source).collect::<Vec<_>>()
        };
        put_in_force(&meta, read(&config).unwrap()).await.unwrap();
        assert_eq!(sources(), ["a.yml", "b.yml"]);
        std::fs::remove_file(file("b.yml")).unwrap();
        replace(&meta, &config, read(&config).unwrap()).await.unwrap();
        assert_eq!(sources(), ["a.yml"]);
        // A node without rule files of its own takes nothing away from the others.
        let none = ServerArgs::default().resolve().unwrap();
        replace(&meta, &none, read(&none).unwrap()).await.unwrap();
        assert_eq!(sources(), ["a.yml"]);
    }

    #[test]
    fn two_rule_files_of_one_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut rules = vec![];
        for folder in ["one", "two"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            let path = dir.path().join(folder).join("a.yml");
            #[allow(clippy::disallowed_methods, reason = "a test's own file")]
            std::fs::write(&path, "groups: []").unwrap();
            rules.push(path.display().to_string());
        }
        let config = ServerArgs {
            rules,
            ..ServerArgs::default()
        }
        .resolve()
        .unwrap();
        assert!(matches!(read(&config), Err(FilesError::SameName { .. })));
    }
}

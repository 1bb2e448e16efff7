//! Every decoder of the project as a fuzz target, by name.

mod languages;

use hindcast_env::fuzz::Target;

/// All targets, in the order of the folders.
pub fn targets() -> impl Iterator<Item = &'static Target> {
    let lists = [
        hindcast_storage::fuzz::TARGETS,
        hindcast_raft::fuzz::TARGETS,
        hindcast_masking::fuzz::TARGETS,
        hindcast_ingest::fuzz::TARGETS,
        hindcast_scrape::fuzz::TARGETS,
        hindcast_snmp::fuzz::TARGETS,
        hindcast_node::fuzz::TARGETS,
        languages::TARGETS,
    ];
    lists.into_iter().flatten()
}

/// Runs one target on one input: what each cargo-fuzz binary does.
///
/// # Panics
/// When there is no such target, or when it finds something.
pub fn run(name: &str, bytes: &[u8]) {
    let target = targets().find(|t| t.name == name);
    (target.unwrap_or_else(|| panic!("there is no target {name:?}")).run)(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_names_of_one_target_and_of_one_cargo_fuzz_binary() {
        let names: BTreeSet<&str> = targets().map(|t| t.name).collect();
        assert_eq!(names.len(), targets().count());
        let manifest = include_str!("../libfuzzer/Cargo.toml");
        let binaries: BTreeSet<&str> = manifest
            .lines()
            .filter_map(|l| l.strip_prefix("name = \"")?.strip_suffix('"'))
            .filter(|n| *n != "hindcast-libfuzzer")
            .collect();
        assert_eq!(names, binaries, "libfuzzer/Cargo.toml lists the same targets");
    }

    #[test]
    fn no_parser_panics_or_hangs_on_any_text() {
        hindcast_env::fuzz::check_targets(languages::TARGETS, &SystemClock::new(), SpanNs::from_ms(2000));
    }
}

//! Every decoder of the project as a fuzz target, by name.

mod languages;
mod questions;

use hindcast_env::fuzz::{INPUT_BYTES_MAX, Target};

/// All targets, in the order of the folders.
pub fn targets() -> impl Iterator<Item = &'static Target> {
    let lists = [
        hindcast_storage::fuzz::TARGETS,
        hindcast_raft::fuzz::TARGETS,
        hindcast_masking::fuzz::TARGETS,
        hindcast_ingest::fuzz::TARGETS,
        hindcast_scrape::fuzz::TARGETS,
        hindcast_snmp::fuzz::TARGETS,
        hindcast_kafka::fuzz::TARGETS,
        hindcast_node::fuzz::TARGETS,
        languages::TARGETS,
        questions::TARGETS,
        hindcast_alerting::fuzz::TARGETS,
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

/// The times in the targets' limits are about this one: cases that speak of now speak of it.
const CORPUS_NOW_MS: i64 = 1_700_000_000_000;

/// Cases of `chaos-tests/corpus` that a target's decoder reads: bad input that people thought of, as seeds. Larger ones than any mutant are
/// left out; a test reads their beginning.
pub fn corpus_of(name: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut inputs = vec![];
    for surface in hindcast_corpus::load(&hindcast_corpus::dir(), CORPUS_NOW_MS)? {
        let own = surface.cases.iter().filter(|c| surface.decoder(c) == Some(name));
        for case in own {
            inputs.push(case.input()?);
        }
    }
    inputs.retain(|i| i.len() <= INPUT_BYTES_MAX);
    Ok(inputs)
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
    fn every_case_of_the_corpus_is_read_or_refused_by_its_decoder_in_time() {
        use hindcast_env::Clock as _;
        const CASE_BYTES_MAX: usize = 256 << 10;
        let clock = SystemClock::new();
        let mut played = 0;
        for surface in hindcast_corpus::load(&hindcast_corpus::dir(), CORPUS_NOW_MS).unwrap() {
            for (_, target) in &surface.decoders {
                assert!(
                    target == "none" || targets().any(|t| t.name == target),
                    "{}: {target:?}",
                    surface.name
                );
            }
            for case in &surface.cases {
                let Some(target) = surface.decoder(case) else { continue };
                let mut input = case.input().unwrap();
                // Of bombs the beginning: whole, they are for a node, which unpacks them within its bounds.
                input.truncate(CASE_BYTES_MAX);
                let began = clock.monotonic();
                run(target, &input);
                let took = SpanNs(clock.monotonic().0 - began.0);
                // Cases are larger than mutants, and these builds are slow.
                let span_max = SpanNs::from_secs(20);
                assert!(took < span_max, "{}: {target} took {took}", case.name);
                played += 1;
            }
        }
        assert!(played > 100, "{played}");
    }

    #[test]
    fn no_parser_panics_or_hangs_on_any_text() {
        hindcast_env::fuzz::check_targets(languages::TARGETS, &SystemClock::new(), SpanNs::from_ms(2000));
    }

    #[test]
    fn no_question_and_no_answer_of_a_peer_makes_the_reader_panic_or_hang() {
        hindcast_env::fuzz::check_targets(questions::TARGETS, &SystemClock::new(), SpanNs::from_ms(2000));
    }
}

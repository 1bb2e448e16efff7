//! How bad a log line says it is.
//!
//! Decided by what the source declared, in its metadata first, then in its stream's labels; never by guessing from the
//! text, so that a word in a message cannot push another line out of a frame.

use super::frame::Level;
use hindcast_model::{Labels, LogLine};

/// Names under which sources declare a level, the more telling ones first.
const NAMES: [&str; 5] = ["severity_text", "level", "detected_level", "severity", "priority"];
/// OTLP's number, used when no text says more.
const OTLP_NUMBER: &str = "severity_number";

pub fn level_of(labels: &Labels, line: &LogLine) -> Level {
    let declared = |name: &str| {
        let in_metadata = line.metadata.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        in_metadata.or_else(|| labels.get(name)).filter(|v| !v.is_empty())
    };
    let by_text = NAMES.iter().find_map(|n| of_text(declared(n)?));
    by_text
        .or_else(|| of_otlp_number(declared(OTLP_NUMBER)?.parse().ok()?))
        .unwrap_or(Level::Unknown)
}

fn of_text(text: &str) -> Option<Level> {
    Some(match text.trim().to_ascii_lowercase().as_str() {
        "fatal" | "critical" | "crit" | "alert" | "emerg" | "emergency" | "panic" | "0" | "1" | "2" => Level::Fatal,
        "error" | "err" | "severe" | "3" => Level::Error,
        "warn" | "warning" | "4" => Level::Warn,
        "info" | "information" | "informational" | "notice" | "log" | "5" | "6" => Level::Info,
        "debug" | "trace" | "fine" | "finer" | "finest" | "verbose" | "7" => Level::Debug,
        _ => return None,
    })
}

fn of_otlp_number(number: u32) -> Option<Level> {
    Some(match number {
        1..=8 => Level::Debug,
        9..=12 => Level::Info,
        13..=16 => Level::Warn,
        17..=20 => Level::Error,
        21..=24 => Level::Fatal,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::TimestampNs;

    fn check(labels: &[(&str, &str)], metadata: &[(&str, &str)], expect: Level) {
        let owned = |p: &[(&str, &str)]| -> Vec<(String, String)> {
            p.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        let line = LogLine {
            at: TimestampNs(0),
            line: "FATAL: not a declaration".into(),
            metadata: owned(metadata),
        };
        assert_eq!(
            level_of(&Labels::new(owned(labels)), &line),
            expect,
            "{labels:?} {metadata:?}"
        );
    }

    #[test]
    fn a_level_is_what_the_source_declared() {
        check(&[], &[], Level::Unknown);
        check(&[("level", "warn")], &[], Level::Warn);
        check(&[("level", "warn")], &[("severity_text", "ERROR")], Level::Error);
        check(&[("severity", "crit")], &[], Level::Fatal);
        check(&[], &[("severity_number", "17")], Level::Error);
        check(&[], &[("severity_number", "99")], Level::Unknown);
        check(
            &[],
            &[("severity_text", "ERROR2"), ("severity_number", "18")],
            Level::Error,
        );
        check(&[("priority", "6")], &[], Level::Info);
    }
}

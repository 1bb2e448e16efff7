//! `hindcast storage flush|compact|scrub`: work on the files of a live node, with its progress.
//!
//! For people: one bar for the whole, on standard error, and a table of what came of it. For programs: one JSON object
//! per line, as it happens, the last one a summary. Exit code 1: a scrub found damage, or could not check all.

use super::{Client, Done, Failure, Output};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use hindcast_proto::v1::maintain_progress::Event;
use hindcast_proto::v1::maintain_request::Work;
use hindcast_proto::v1::shard_progress::State;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast storage flush
  hindcast storage compact --endpoint http://127.0.0.1:7410
  hindcast storage scrub --max-bytes-per-second 64MiB
  hindcast storage scrub --shard 2 -o json")]
pub struct StorageArgs {
    #[command(subcommand)]
    action: StorageAction,
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    client: Client,
    /// Only this shard. May be given more than once; default: all shards of the node.
    #[arg(long, value_name = "NUMBER")]
    shard: Vec<u64>,
    /// Table: a bar and a summary. Json: one JSON object per line, as it happens.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum StorageAction {
    /// Writes what is in memory into segments; the Raft log can be cut afterwards.
    #[command(after_help = "Examples:\n  hindcast storage flush\n  hindcast storage flush --shard 1 -o json")]
    Flush {
        #[command(flatten)]
        common: Common,
    },
    /// Flushes, then merges small segments until nothing is left to merge.
    #[command(
        after_help = "Examples:\n  hindcast storage compact\n  hindcast storage compact --endpoint http://127.0.0.1:7410"
    )]
    Compact {
        #[command(flatten)]
        common: Common,
    },
    /// Reads every segment whole and compares its checksums; the node goes on serving. Exit code 1: damage was found.
    #[command(
        after_help = "Examples:\n  hindcast storage scrub\n  hindcast storage scrub --max-bytes-per-second 8MiB -o json\n\nWhat to do about findings: ops/runbooks/scrub-findings.md"
    )]
    Scrub {
        #[command(flatten)]
        common: Common,
        /// Reads no more than this (100000, 512KiB, 64MiB, 1GiB). Default: 32MiB.
        #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
        max_bytes_per_second: Option<u64>,
    },
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: Option<u64> = match &text[digits..] {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let number = text[..digits].parse::<u64>().ok();
    let bytes = number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    bytes
        .filter(|b| *b > 0)
        .ok_or_else(|| "use a number of bytes like 100000, 512KiB, 64MiB or 1GiB".to_owned())
}

pub async fn run(args: StorageArgs) -> Done {
    let (common, work, rate) = match args.action {
        StorageAction::Flush { common } => (common, Work::Flush, None),
        StorageAction::Compact { common } => (common, Work::Compact, None),
        StorageAction::Scrub {
            common,
            max_bytes_per_second,
        } => (common, Work::Scrub, max_bytes_per_second),
    };
    let mut cluster = ClusterClient::new(common.client.connect().await?);
    let request = v1::MaintainRequest {
        work: work.into(),
        groups: common.shard,
        bytes_per_second_max: rate.unwrap_or(0),
    };
    let mut progress = cluster.maintain(request).await?.into_inner();
    let mut view = View::new(work, common.output);
    while let Some(message) = progress.message().await? {
        if let Some(event) = message.event {
            view.take(&event);
        }
    }
    view.end()
}

/// What is shown of the events.
struct View {
    work: Work,
    output: Output,
    bar: ProgressBar,
    shards: BTreeMap<u64, v1::ShardProgress>,
    summary: Option<v1::MaintainSummary>,
}

impl View {
    fn new(work: Work, output: Output) -> Self {
        // Draws on stderr, and only when that is a terminal.
        let bar = match output {
            Output::Table => ProgressBar::no_length(),
            Output::Json => ProgressBar::hidden(),
        };
        let template = match work {
            Work::Scrub => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}",
            _ => "{spinner} {elapsed} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            work,
            output,
            bar,
            shards: BTreeMap::new(),
            summary: None,
        }
    }

    fn take(&mut self, event: &Event) {
        if self.output == Output::Json {
            println!("{}", json(event));
        }
        match event {
            Event::Shard(s) => {
                self.shards.insert(s.group, *s);
                self.bar.set_length(self.shards.values().map(|s| s.bytes).sum());
                self.bar
                    .set_position(self.shards.values().map(|s| s.bytes_checked).sum());
                self.bar.set_message(message(self.shards.values()));
                self.bar.tick();
            }
            Event::Finding(f) if self.output == Output::Table => self.bar.suspend(|| println!("{}", finding_line(f))),
            Event::Unchecked(u) if self.output == Output::Table => {
                self.bar.suspend(|| println!("{}", unchecked_line(u)));
            }
            Event::Finding(_) | Event::Unchecked(_) => {}
            Event::Summary(s) => self.summary = Some(*s),
        }
    }

    fn end(self) -> Done {
        self.bar.finish_and_clear();
        let Some(summary) = self.summary else {
            return Err(Failure::unreachable(
                "the node ended the call before the work was done; look at its log, and run this again",
            ));
        };
        if self.output == Output::Table {
            print!("{}", table(self.work, self.shards.values(), &summary));
        }
        match (summary.findings, summary.files_unchecked) {
            (0, 0) => Ok(ExitCode::SUCCESS),
            (0, n) => Err(Failure::no(format!(
                "{n} files in the cold store were not checked, since it could not be asked; scrub again when it can"
            ))),
            (n, _) => Err(Failure::no(format!(
                "{n} damaged places were found; ops/runbooks/scrub-findings.md says what to do"
            ))),
        }
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Flushing => "flushing",
        State::Merging => "merging",
        State::Checking => "checking",
        State::Done => "done",
    }
}

fn message<'a>(shards: impl Iterator<Item = &'a v1::ShardProgress>) -> String {
    let part = |s: &v1::ShardProgress| match s.state() {
        State::Merging => format!("shard {} merging ({} segments)", s.group, s.segments),
        State::Checking => format!("shard {} file {}/{}", s.group, s.files_checked, s.files),
        state => format!("shard {} {}", s.group, state_name(state)),
    };
    let busy: Vec<String> = shards.filter(|s| s.state() != State::Done).map(part).collect();
    busy.join(", ")
}

fn finding_line(f: &v1::Finding) -> String {
    format!(
        "DAMAGE shard {}: {}, bytes {}..{}: {}\n  next: {}",
        f.group, f.file, f.from, f.to, f.why, f.next
    )
}

fn unchecked_line(u: &v1::Unchecked) -> String {
    format!("NOT CHECKED shard {}: {}: {}", u.group, u.file, u.why)
}

fn json(event: &Event) -> serde_json::Value {
    match event {
        Event::Shard(s) => {
            let mut line = json!({
                "event": "shard", "shard": s.group, "state": state_name(s.state()),
                "segments": s.segments, "segment_bytes": s.segment_bytes,
                "cold_segments": s.cold_segments, "cold_bytes": s.cold_bytes,
            });
            if s.files > 0 || s.state() == State::Checking {
                line["files_checked"] = s.files_checked.into();
                line["files"] = s.files.into();
                line["files_unchecked"] = s.files_unchecked.into();
                line["bytes_checked"] = s.bytes_checked.into();
                line["bytes"] = s.bytes.into();
            }
            line
        }
        Event::Finding(f) => json!({
            "event": "finding", "shard": f.group, "file": f.file, "from": f.from, "to": f.to, "why": f.why, "next": f.next,
        }),
        Event::Unchecked(u) => json!({ "event": "unchecked", "shard": u.group, "file": u.file, "why": u.why }),
        Event::Summary(s) => json!({
            "event": "summary", "shards": s.shards, "segments": s.segments, "segment_bytes": s.segment_bytes,
            "cold_segments": s.cold_segments, "cold_bytes": s.cold_bytes,
            "files_checked": s.files_checked, "bytes_checked": s.bytes_checked, "findings": s.findings,
            "files_unchecked": s.files_unchecked,
        }),
    }
}

fn table<'a>(work: Work, shards: impl Iterator<Item = &'a v1::ShardProgress>, summary: &v1::MaintainSummary) -> String {
    use std::fmt::Write as _;
    let mut out = format!("{:<8}{:>10}{:>16}", "SHARD", "SEGMENTS", "BYTES");
    if work == Work::Scrub {
        out.push_str("   CHECKED");
    }
    out.push('\n');
    for s in shards {
        let _ = write!(out, "{:<8}{:>10}{:>16}", s.group, s.segments, s.segment_bytes);
        if work == Work::Scrub {
            let _ = write!(out, "   {} files, {} bytes", s.files_checked, s.bytes_checked);
        }
        out.push('\n');
    }
    let _ = match work {
        Work::Scrub => writeln!(
            out,
            "{} files and {} bytes checked, {} damaged places",
            summary.files_checked, summary.bytes_checked, summary.findings
        ),
        _ => writeln!(out, "{} segments, {} bytes", summary.segments, summary.segment_bytes),
    };
    if summary.cold_segments > 0 {
        let _ = writeln!(
            out,
            "of these in the cold store: {} segments, {} bytes",
            summary.cold_segments, summary.cold_bytes
        );
    }
    if summary.files_unchecked > 0 {
        let _ = writeln!(
            out,
            "{} files in the cold store were not checked",
            summary.files_unchecked
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_rate_is_bytes_with_a_binary_unit() {
        for (text, bytes) in [
            ("1", 1),
            ("100000", 100_000),
            ("512KiB", 512 << 10),
            ("64MiB", 64 << 20),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "MiB", "1.5MiB", "-1", "1MB", "99999999999999GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_scrub_reads_like_this_to_people_and_programs() {
        let shard = v1::ShardProgress {
            group: 2,
            state: State::Done.into(),
            segments: 3,
            segment_bytes: 4096,
            files_checked: 3,
            files: 3,
            bytes_checked: 4096,
            bytes: 4096,
            cold_segments: 1,
            cold_bytes: 1024,
            files_unchecked: 0,
        };
        let finding = v1::Finding {
            group: 2,
            file: "shard-2/segment-0000000000000001".into(),
            from: 10,
            to: 90,
            why: "the checksum does not fit".into(),
            next: "scrub again".into(),
        };
        let unchecked = v1::Unchecked {
            group: 2,
            file: "s3://b/c/segment-2".into(),
            why: "it is away".into(),
        };
        let summary = v1::MaintainSummary {
            shards: 1,
            segments: 3,
            segment_bytes: 4096,
            files_checked: 3,
            bytes_checked: 4096,
            findings: 1,
            cold_segments: 1,
            cold_bytes: 1024,
            files_unchecked: 1,
        };
        expect![[r#"
            DAMAGE shard 2: shard-2/segment-0000000000000001, bytes 10..90: the checksum does not fit
              next: scrub again
            NOT CHECKED shard 2: s3://b/c/segment-2: it is away
            SHARD     SEGMENTS           BYTES   CHECKED
            2                3            4096   3 files, 4096 bytes
            3 files and 4096 bytes checked, 1 damaged places
            of these in the cold store: 1 segments, 1024 bytes
            1 files in the cold store were not checked
        "#]]
        .assert_eq(&format!(
            "{}\n{}\n{}",
            finding_line(&finding),
            unchecked_line(&unchecked),
            table(Work::Scrub, [shard].iter(), &summary)
        ));
        let events = [
            Event::Shard(shard),
            Event::Finding(finding),
            Event::Unchecked(unchecked),
            Event::Summary(summary),
        ];
        let lines: Vec<String> = events.iter().map(|e| json(e).to_string()).collect();
        expect![[r#"
            {"bytes":4096,"bytes_checked":4096,"cold_bytes":1024,"cold_segments":1,"event":"shard","files":3,"files_checked":3,"files_unchecked":0,"segment_bytes":4096,"segments":3,"shard":2,"state":"done"}
            {"event":"finding","file":"shard-2/segment-0000000000000001","from":10,"next":"scrub again","shard":2,"to":90,"why":"the checksum does not fit"}
            {"event":"unchecked","file":"s3://b/c/segment-2","shard":2,"why":"it is away"}
            {"bytes_checked":4096,"cold_bytes":1024,"cold_segments":1,"event":"summary","files_checked":3,"files_unchecked":1,"findings":1,"segment_bytes":4096,"segments":3,"shards":1}"#]]
        .assert_eq(&lines.join("\n"));
    }
}

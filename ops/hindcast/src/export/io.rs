//! The export's door to the outside: asks a live node, writes files beside the target, puts them in its place.
//!
//! Invariants
//! - The target appears whole, by one rename; until then everything lies in `TARGET.partial`.
//! - Only files that an export wrote are ever replaced.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the door to the folder that a person names"
)]

use super::table::{Format, Table};
use super::{ExportConfig, ExportError, ExportReport, Kind, PartReport, days, domain_of, is_part_path, part_path};
use crate::cli::Channel;
use hindcast_model::TimestampNs;
use hindcast_proto::v1;
use hindcast_proto::v1::query_client::QueryClient;
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

const NS_PER_SECOND: i64 = 1_000_000_000;
const WRITE_BYTES: usize = 1 << 20;

/// Exports the range. `bar` counts seconds of it, once per kind.
pub async fn run(config: &ExportConfig, channel: Channel, bar: &ProgressBar) -> Result<ExportReport, ExportError> {
    if config.to < config.from {
        return Err(ExportError::Usage("the range ends before it starts".to_owned()));
    }
    let mut formats = vec![];
    for kind in &config.kinds {
        let format = Format::new(*kind, config.precision, &config.promote).map_err(ExportError::Usage)?;
        formats.push((*kind, format));
    }
    let target = Target::prepare(&config.out, config.overwrite)?;
    let seconds = |from: TimestampNs, to: TimestampNs| (to.0.saturating_sub(from.0) / NS_PER_SECOND).max(0) as u64;
    bar.set_length(seconds(config.from, config.to) * formats.len() as u64);
    let mut export = Export {
        config,
        client: QueryClient::new(channel),
        target: &target,
        report: ExportReport::default(),
        bar,
    };
    for (i, (kind, format)) in formats.iter().enumerate() {
        for (day, start, end) in days(config.from, config.to) {
            bar.set_message(format!("{} {day}", kind.as_str()));
            let before = i as u64 * seconds(config.from, config.to);
            let at = |t: TimestampNs| before + seconds(config.from, t);
            export.day(*kind, format, &day, (start, end), &at).await?;
            bar.set_position(at(end));
        }
    }
    let report = export.report;
    target.finish()?;
    Ok(report)
}

struct Export<'a> {
    config: &'a ExportConfig,
    client: QueryClient<Channel>,
    target: &'a Target,
    report: ExportReport,
    bar: &'a ProgressBar,
}

type Parts = BTreeMap<String, (PathBuf, Table<BufWriter<File>>)>;

impl Export<'_> {
    async fn day(
        &mut self,
        kind: Kind,
        format: &Format,
        day: &str,
        (start, end): (TimestampNs, TimestampNs),
        progress: &dyn Fn(TimestampNs) -> u64,
    ) -> Result<(), ExportError> {
        let request = v1::RowsRequest {
            selector: self.config.selector.clone(),
            lines: kind == Kind::Logs,
            start_ns: start.0,
            end_ns: end.0,
        };
        let mut rows = self
            .client
            .rows(request)
            .await
            .map_err(ExportError::Server)?
            .into_inner();
        // One open file per domain; a new day closes them all.
        let mut parts = Parts::new();
        let mut completeness = None;
        while let Some(message) = rows.message().await.map_err(ExportError::Server)? {
            let newest = message.series.iter().filter_map(|s| s.at_ns.last());
            let newest = newest.chain(message.streams.iter().filter_map(|s| s.lines.last().map(|l| &l.at_ns)));
            if let Some(at) = newest.max() {
                self.bar.set_position(progress(TimestampNs(*at)));
            }
            for series in message.series {
                let (path, table) = self.part(&mut parts, kind, format, day, series.owner.as_ref())?;
                self.report.samples += series.at_ns.len() as u64;
                table.samples(series).map_err(parquet_error(path))?;
            }
            for stream in message.streams {
                let (path, table) = self.part(&mut parts, kind, format, day, stream.owner.as_ref())?;
                self.report.lines += stream.lines.len() as u64;
                table.lines(stream).map_err(parquet_error(path))?;
            }
            completeness = message.completeness.or(completeness);
        }
        match completeness {
            Some(c) if c.complete => {}
            Some(c) => return Err(ExportError::Incomplete(c.missing)),
            None => return Err(ExportError::Incomplete(vec!["the node ended it early".to_owned()])),
        }
        for (domain, (path, table)) in parts {
            let name = part_path(kind, &domain, day);
            self.report.parts.push(close(&path, name, table)?);
            self.report.files += 1;
            self.report.bytes += self.report.parts.last().map_or(0, |p| p.bytes);
        }
        Ok(())
    }

    fn part<'p>(
        &self,
        parts: &'p mut Parts,
        kind: Kind,
        format: &Format,
        day: &str,
        owner: Option<&v1::RowsOwner>,
    ) -> Result<&'p mut (PathBuf, Table<BufWriter<File>>), ExportError> {
        use std::collections::btree_map::Entry;
        match parts.entry(domain_of(owner)) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(new) => {
                let path = self.target.partial.join(part_path(kind, new.key(), day));
                let dir = path.parent().unwrap_or(&path);
                fs::create_dir_all(dir).map_err(file_error(dir))?;
                let file = File::create(&path).map_err(file_error(&path))?;
                let table = Table::new(format.clone(), BufWriter::with_capacity(WRITE_BYTES, file));
                let table = table.map_err(parquet_error(&path))?;
                Ok(new.insert((path, table)))
            }
        }
    }
}

/// Finishes a file; it is on disk afterwards.
fn close(path: &Path, name: String, table: Table<BufWriter<File>>) -> Result<PartReport, ExportError> {
    let (rows, out) = table.finish().map_err(parquet_error(path))?;
    let file = out.into_inner().map_err(|e| file_error(path)(e.into_error()))?;
    file.sync_all().map_err(file_error(path))?;
    let bytes = file.metadata().map_err(file_error(path))?.len();
    Ok(PartReport {
        path: name,
        rows,
        bytes,
    })
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> ExportError + '_ {
    move |source| ExportError::File {
        path: path.display().to_string(),
        source,
    }
}

fn parquet_error(path: &Path) -> impl Fn(parquet::errors::ParquetError) -> ExportError + '_ {
    move |source| ExportError::Parquet {
        path: path.display().to_string(),
        source,
    }
}

/// Where the files go in the end, and where they lie until then.
struct Target {
    out: PathBuf,
    partial: PathBuf,
    replaces: bool,
}

impl Target {
    fn prepare(out: &Path, overwrite: bool) -> Result<Self, ExportError> {
        let name = out.file_name().map(|n| n.to_string_lossy().into_owned());
        let Some(name) = name else {
            return Err(ExportError::Usage(format!("{} names no folder", out.display())));
        };
        let replaces = match fs::metadata(out) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(file_error(out)(e)),
            Ok(m) if !m.is_dir() => return Err(ExportError::Usage(format!("{} is no folder", out.display()))),
            Ok(_) => {
                let files = files(out).map_err(file_error(out))?;
                let foreign = files.iter().find(|f| !is_part_path(f));
                match (files.is_empty(), overwrite, foreign) {
                    (true, ..) => {}
                    (false, false, _) => {
                        return Err(ExportError::Usage(format!(
                            "{} is not empty; name another folder, or replace an earlier export there with --overwrite",
                            out.display()
                        )));
                    }
                    (false, true, Some(foreign)) => {
                        return Err(ExportError::Usage(format!(
                            "{} holds {foreign}, which no export wrote; --overwrite replaces exports only",
                            out.display()
                        )));
                    }
                    (false, true, None) => {}
                }
                true
            }
        };
        let parent = match out.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(file_error(parent))?;
        let partial = parent.join(format!("{name}.partial"));
        fs::create_dir(&partial).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => ExportError::Usage(format!(
                "{} is there: another export writes it now, or one was interrupted; remove it in the second case",
                partial.display()
            )),
            _ => file_error(&partial)(e),
        })?;
        Ok(Self {
            out: out.to_owned(),
            partial,
            replaces,
        })
    }

    /// Puts the files in their place.
    fn finish(self) -> Result<(), ExportError> {
        sync_dirs(&self.partial).map_err(file_error(&self.partial))?;
        let old = self.partial.with_extension("replaced");
        if self.replaces {
            fs::rename(&self.out, &old).map_err(file_error(&self.out))?;
        }
        if let Err(e) = fs::rename(&self.partial, &self.out) {
            if self.replaces {
                // Back to what was there; the first error is the one to tell.
                let _ = fs::rename(&old, &self.out);
            }
            return Err(file_error(&self.out)(e));
        }
        let parent = self.partial.parent().unwrap_or(Path::new("."));
        File::open(parent)
            .and_then(|d| d.sync_all())
            .map_err(file_error(parent))?;
        if self.replaces {
            fs::remove_dir_all(&old).map_err(file_error(&old))?;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Gone already when the export is in its place. A failure leaves files that the next export names.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// Paths of all files below a folder, relative to it, with `/`.
fn files(root: &Path) -> std::io::Result<Vec<String>> {
    let mut found = vec![];
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                let path = entry.path();
                let relative = path.strip_prefix(root).unwrap_or(&path);
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn sync_dirs(root: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_dirs(&entry.path())?;
        }
    }
    File::open(root)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn why(result: Result<Target, ExportError>) -> String {
        result.err().map(|e| e.to_string()).unwrap_or_default()
    }

    const PART: &str = "kind=metrics/domain=sms/day=2026-11-22/part-0.parquet";

    #[test]
    fn an_export_takes_the_place_of_nothing_but_an_export() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let first = Target::prepare(&out, false).unwrap();
        assert!(why(Target::prepare(&out, false)).contains("another export writes it now"));
        put(&first.partial, PART, "one");
        assert!(!out.exists(), "nothing shows before the end");
        first.finish().unwrap();
        assert_eq!(files(&out).unwrap(), [PART]);

        assert!(why(Target::prepare(&out, false)).contains("is not empty"));
        let second = Target::prepare(&out, true).unwrap();
        put(&second.partial, PART, "two");
        assert_eq!(fs::read_to_string(out.join(PART)).unwrap(), "one");
        second.finish().unwrap();
        assert_eq!(fs::read_to_string(out.join(PART)).unwrap(), "two");
        assert_eq!(
            files(dir.path()).unwrap(),
            [format!("out/{PART}")],
            "nothing is left beside it"
        );

        put(&out, "letters/dear.txt", "precious");
        assert!(why(Target::prepare(&out, true)).contains("holds letters/dear.txt"));
        assert_eq!(fs::read_to_string(out.join("letters/dear.txt")).unwrap(), "precious");
    }

    #[test]
    fn an_export_that_fails_leaves_the_target_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        put(&out, PART, "one");
        let failed = Target::prepare(&out, true).unwrap();
        put(&failed.partial, PART, "half");
        drop(failed);
        assert_eq!(files(dir.path()).unwrap(), [format!("out/{PART}")]);
        assert_eq!(fs::read_to_string(out.join(PART)).unwrap(), "one");
    }
}

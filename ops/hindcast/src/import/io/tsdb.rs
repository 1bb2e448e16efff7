//! Data directories of a Prometheus: read on a thread of their own, sent from here.
//!
//! Samples of equal times overwrite each other in the store: so what is told twice is stored once, and an import that goes on
//! behind the last confirmed series or record may repeat a part of the next one under another writer's name.

use super::{Import, cannot_read, note};
use crate::agent::batcher::Batcher;
use crate::import::resume::Mark;
use crate::import::{FOUND_SHOWN_MAX, ImportError, ImportReport, joined};
use hindcast_env::io::RealDisk;
use hindcast_ingest::tsdb::{Finding, Flow, NoWalk, Place, Sink, Tally, Walk};
use hindcast_model::{Histogram, Labels};
use hindcast_proto::v1;
use indicatif::ProgressBar;
use std::path::Path;
use std::time::SystemTime;
use tokio::sync::mpsc;

/// Batches and findings that are read ahead of what is sent.
const READ_AHEAD_MAX: usize = 4;

/// What the reading thread tells.
enum Told {
    /// A batch, and a place that it and those before it reach.
    Batch(Box<v1::WriteRequest>, Place, Tally),
    Found(Finding),
    Ended(Tally),
}

/// All files below, as far as they are read.
pub fn bytes(path: &Path) -> Result<u64, ImportError> {
    let disk = disk(path)?;
    let walk = Walk::open(&disk).map_err(|e| no_walk(path, &e))?;
    Ok(walk.bytes())
}

fn disk(path: &Path) -> Result<RealDisk, ImportError> {
    if !path.is_dir() {
        let why = if path.exists() {
            "it is no folder"
        } else {
            "there is no such folder"
        };
        return Err(cannot_read(path, &std::io::Error::other(why)));
    }
    RealDisk::new(path).map_err(|e| cannot_read(path, &e.source))
}

fn no_walk(path: &Path, why: &NoWalk) -> ImportError {
    ImportError::Read {
        file: path.display().to_string(),
        why: why.to_string(),
    }
}

/// Imports the directory that is number `i` in the list.
pub async fn import(import: &mut Import<'_>, i: usize, path: &Path, bar: &ProgressBar) -> Result<(), ImportError> {
    let disk = disk(path)?;
    let (fingerprint, bytes) = {
        let walk = Walk::open(&disk).map_err(|e| no_walk(path, &e))?;
        (walk.fingerprint(), walk.bytes())
    };
    let known = import.progress.saved.file(i, &format!("tsdb/{fingerprint:016x}"));
    if known.done {
        bar.inc(bytes);
        return Ok(());
    }
    let (place, tally) = match &known.mark {
        Some(Mark::Tsdb { place, tally }) => (*place, tally.clone()),
        _ => (Place::START, Tally::default()),
    };
    // A name of its own for each run: what is sent again is cut into other batches.
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    let writer = format!("import/tsdb/{fingerprint:016x}/{}/{since}", std::process::id());
    let (tell, mut told) = mpsc::channel(READ_AHEAD_MAX);
    let feeder = Feeder {
        batcher: Batcher::new(writer, &import.config.resource),
        given: import.config.labels.clone(),
        last: None,
        place,
        tally: tally.clone(),
        tell,
        bar: bar.clone(),
        bytes_before: bar.position(),
    };
    let reading = tokio::task::spawn_blocking(move || {
        let mut feeder = feeder;
        if let Ok(walk) = Walk::open(&disk)
            && walk.run(place, tally, &mut feeder).is_continue()
        {
            feeder.end();
        }
    });
    let mut ended = false;
    while let Some(one) = told.recv().await {
        match one {
            Told::Found(finding) => found(&mut import.progress.saved.report, path, &finding),
            Told::Batch(batch, place, tally) => {
                let mark = Mark::Tsdb { place, tally };
                import.send(&batch).await?;
                import.confirm(i, mark);
            }
            Told::Ended(tally) => {
                end(&mut import.progress.saved.report, path, tally);
                ended = true;
            }
        }
    }
    if let Err(e) = reading.await {
        std::panic::resume_unwind(e.into_panic());
    }
    if !ended {
        let gone = std::io::Error::other("the folder changed while it was read; run the same command again");
        return Err(cannot_read(path, &gone));
    }
    Ok(())
}

/// A finding is met again when an import is taken up again.
fn found(report: &mut ImportReport, path: &Path, finding: &Finding) {
    let text = format!("{}/{finding}", path.display());
    if report.found.contains(&text) {
        return;
    }
    report.damaged += u64::from(matches!(finding, Finding::Damage(_)));
    if report.found.len() < FOUND_SHOWN_MAX {
        report.found.push(text);
    }
}

fn end(report: &mut ImportReport, path: &Path, tally: Tally) {
    if tally.histograms_refused > 0 {
        report.refused += tally.histograms_refused;
        let text = format!(
            "{} native histograms refused: {}",
            tally.histograms_refused, tally.histograms_why
        );
        note(report, format!("{}: {text}", path.display()));
    }
    if tally.of_unknown_series > 0 {
        report.refused += tally.of_unknown_series;
        let text = format!(
            "{} samples refused: no record says which series they are of",
            tally.of_unknown_series
        );
        note(report, format!("{}: {text}", path.display()));
    }
    let all = report.tsdb.get_or_insert_default();
    all.add(&tally);
}

struct Feeder {
    batcher: Batcher,
    given: Vec<(String, String)>,
    /// The labels that came last, and with those that are given.
    last: Option<(Labels, Labels)>,
    place: Place,
    tally: Tally,
    tell: mpsc::Sender<Told>,
    bar: ProgressBar,
    bytes_before: u64,
}

impl Feeder {
    /// Waits for room; breaks when nobody listens any more.
    fn tell(&self, told: Told) -> Flow {
        match self.tell.blocking_send(told) {
            Ok(()) => Flow::Continue(()),
            Err(_) => Flow::Break(()),
        }
    }

    /// Keeps the labels of a series as they are sent: its rows follow each other.
    fn remember(&mut self, labels: &Labels) {
        if self.last.as_ref().is_none_or(|(own, _)| own != labels) {
            self.last = Some((labels.clone(), joined(labels.clone(), &self.given)));
        }
    }

    fn batch(&self, batch: v1::WriteRequest) -> Flow {
        self.tell(Told::Batch(Box::new(batch), self.place, self.tally.clone()))
    }

    fn end(&mut self) {
        let rest = self.batcher.finish();
        if rest.is_none_or(|batch| self.batch(batch).is_continue()) {
            let _ = self.tell(Told::Ended(self.tally.clone()));
        }
    }
}

impl Sink for Feeder {
    fn row(&mut self, labels: &Labels, at_ms: i64, value: f64) -> Flow {
        self.remember(labels);
        let Some((_, labels)) = &self.last else {
            return Flow::Continue(());
        };
        match self.batcher.sample(labels, at_ms, value) {
            Some(full) => self.batch(full),
            None => Flow::Continue(()),
        }
    }

    fn native(&mut self, labels: &Labels, at_ms: i64, histogram: Option<&Histogram>) -> Flow {
        self.remember(labels);
        let Some((_, labels)) = &self.last else {
            return Flow::Continue(());
        };
        match self.batcher.native(labels, at_ms, histogram) {
            Some(full) => self.batch(full),
            None => Flow::Continue(()),
        }
    }

    fn at(&mut self, place: &Place, tally: &Tally, bytes: u64) -> Flow {
        self.place = *place;
        self.tally.clone_from(tally);
        self.bar.set_position(self.bytes_before + bytes);
        if self.tell.is_closed() {
            Flow::Break(())
        } else {
            Flow::Continue(())
        }
    }

    fn found(&mut self, finding: Finding) {
        let _ = self.tell(Told::Found(finding));
    }
}

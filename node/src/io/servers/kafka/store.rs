//! Records of one partition into the store, by the way that other protocols take.
//!
//! A batch is tried until it is stored or can never be: then its records are counted, said and passed over. Back-off doubles up to
//! [`PAUSE_MAX`], and is no shorter than what a limit says.

use super::stats::SourceStats;
use crate::io::servers::{Beside, IngestError, IngestState, SHOWN_MAX};
use crate::write::{WriteError, Written};
use hindcast_ingest::otlp::{Before, DeltaState, Ties};
use hindcast_ingest::records::{self, Form, Known, Read, Record};
use hindcast_ingest::{Intake, Naming, Protocol};
use hindcast_kafka::Topic;
use hindcast_kafka::lane::back_off;
use hindcast_model::{Batch, BatchId, Class, Classify, SpanNs, WriterId};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const PAUSE_FIRST_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 5_000;
/// A limit may say when there is room; it is not waited for longer at a time.
const TOLD_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Times that a batch is laid out anew because what is kept became shorter meanwhile.
const TOO_OLD_MAX: u32 = 3;
/// How often the log says that something waits.
const SAID_PAUSE: Duration = Duration::from_secs(30);
/// How often the log names records that are refused, of one partition.
const REFUSED_SAID_PAUSE: Duration = Duration::from_secs(10);

/// Stores batches of one partition, one after the other.
pub struct Store {
    pub ingest: IngestState,
    pub stats: Arc<SourceStats>,
    pub source: String,
    pub topic: Arc<Topic>,
    pub partition: i32,
    said: Option<tokio::time::Instant>,
    refused_said: Option<tokio::time::Instant>,
    refused_unsaid: u64,
}

/// Totals of deltas as they were before a batch was read. Unless it is stored, they become that again, whichever way it ends: the same
/// records come again, and must come to the same.
struct Undo {
    ingest: IngestState,
    before: Option<Before>,
}

impl Undo {
    fn keep(mut self) {
        self.before = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.ingest.deltas.lock().take_back(before);
        }
    }
}

enum Outcome {
    Stored(Written),
    TooLarge,
    Refused(String),
}

impl Store {
    pub fn new(
        ingest: IngestState,
        stats: Arc<SourceStats>,
        source: String,
        topic: Arc<Topic>,
        partition: i32,
    ) -> Self {
        Self {
            ingest,
            stats,
            source,
            topic,
            partition,
            said: None,
            refused_said: None,
            refused_unsaid: 0,
        }
    }

    /// Stores records as the batch that ends at `until`. Returns when they are stored, or never can be. Dropped on its way, what is
    /// stored of it stays so, and the same batch may come again.
    pub async fn store(&mut self, writer: WriterId, records: Vec<Record>, until: i64) {
        let mut parts = vec![(records, until)];
        while let Some((mut part, until)) = parts.pop() {
            let bytes: usize = part.iter().map(|r| r.value.len()).sum();
            let count = part.len();
            let records = Arc::new(part.clone());
            match self.store_part(writer, records, until, bytes).await {
                Outcome::Stored(written) => {
                    let of = &self.stats;
                    of.batches.fetch_add(1, Relaxed);
                    of.known_batches.fetch_add(u64::from(written.duplicate), Relaxed);
                    of.records.fetch_add(count as u64, Relaxed);
                    of.bytes.fetch_add(bytes as u64, Relaxed);
                }
                // The first half ends where the second begins, so that shards which have the whole know both.
                Outcome::TooLarge if count > 1 => {
                    let second = part.split_off(count / 2);
                    let middle = second.first().map_or(until, |r| r.offset);
                    parts.push((second, until));
                    parts.push((part, middle));
                }
                Outcome::TooLarge => {
                    self.refuse(
                        "too_large",
                        count as u64,
                        until - 1,
                        "it is larger than an entry of the log may be",
                    );
                }
                Outcome::Refused(why) => self.refuse("refused", count as u64, part[0].offset, &why),
            }
        }
    }

    /// Counts records that are passed over, and says so, not too often.
    pub fn refuse(&mut self, reason: &'static str, records: u64, offset: i64, why: &str) {
        self.stats.refused(reason, records);
        self.refused_unsaid += records;
        let now = tokio::time::Instant::now();
        if self.refused_said.is_some_and(|at| now < at + REFUSED_SAID_PAUSE) {
            return;
        }
        self.refused_said = Some(now);
        let records = std::mem::take(&mut self.refused_unsaid);
        tracing::error!(
            source = self.source,
            topic = self.topic.name,
            partition = self.partition,
            offset,
            reason,
            records,
            why,
            "records cannot be stored and are passed over; hindcast_kafka_refused_records_total counts them"
        );
    }

    /// Large batches take long to read.
    async fn read(&self, records: &Arc<Vec<Record>>) -> Option<(Read, Batch, Undo)> {
        let (ingest, topic, records) = (self.ingest.clone(), self.topic.clone(), records.clone());
        let read = tokio::task::spawn_blocking(move || {
            let limits = ingest.limits(&topic.tenant);
            let adapt = |deltas: &mut DeltaState, ties: &mut Ties| {
                let described = &ingest.described;
                let mut known = Known {
                    deltas,
                    ties,
                    described,
                };
                records::adapt(&topic.tenant, &topic.form, &records, &limits, &mut known)
            };
            let (mut read, before) = match topic.form {
                Form::Otlp { .. } => {
                    let mut deltas = ingest.deltas.lock();
                    deltas.keeping(|deltas| adapt(deltas, &mut ingest.ties.lock()))
                }
                // These have no use for them, and need not wait for others.
                _ => (
                    adapt(&mut DeltaState::default(), &mut Ties::default()),
                    Before::default(),
                ),
            };
            let undo = Undo {
                ingest: ingest.clone(),
                before: Some(before),
            };
            let mut batch = std::mem::replace(&mut read.adapted.batch, Batch::new(topic.tenant.clone()));
            ingest.keep_allowed(&mut batch, &mut read.adapted.rejected);
            ingest.mask(&mut batch, &limits.bounds, Some("kafka_cut"));
            (read, batch, undo)
        });
        match read.await {
            Ok(read) => Some(read),
            Err(why) => {
                if why.is_panic() {
                    tracing::error!(%why, topic = self.topic.name, "reading records broke off by a mistake of this program");
                }
                None
            }
        }
    }

    async fn store_part(&mut self, writer: WriterId, records: Arc<Vec<Record>>, until: i64, bytes: usize) -> Outcome {
        let tenant = self.topic.tenant.clone();
        let Some((mut read, mut batch, mut undo)) = self.read(&records).await else {
            return Outcome::Refused("they cannot be read, by a mistake of this program".to_owned());
        };
        let ingest = self.ingest.clone();
        let (mut attempt, mut too_old, mut is_charged) = (0, 0, false);
        loop {
            if batch.series.is_empty() && batch.streams.is_empty() {
                undo.keep();
                self.tell(&read);
                return Outcome::Stored(Written::default());
            }
            batch.id = Some(BatchId::Ordered {
                writer,
                seq: u64::try_from(until).unwrap_or(0),
            });
            let why = match write(&ingest, &batch, bytes, &mut is_charged).await {
                Ok(written) => {
                    undo.keep();
                    self.tell(&read);
                    ingest.counters.taken(Protocol::Kafka, &written);
                    if !written.duplicate {
                        ingest.count_requests(&tenant, std::mem::take(&mut read.calls));
                    }
                    let beside = Beside {
                        due: std::mem::take(&mut read.due),
                        exemplars: read.exemplars,
                        exemplars_left_out: read.exemplars_left_out,
                    };
                    ingest.beside(&tenant, beside).await;
                    return Outcome::Stored(written);
                }
                Err(why) => why,
            };
            match (&why, why.class()) {
                (_, Class::TooLarge) => return Outcome::TooLarge,
                // What is kept became shorter meanwhile.
                (IngestError::Write(WriteError::TooOld { .. }), _) if too_old < TOO_OLD_MAX => {
                    too_old += 1;
                    drop(undo);
                    let Some(again) = self.read(&records).await else {
                        return Outcome::Refused("they cannot be read, by a mistake of this program".to_owned());
                    };
                    (read, batch, undo) = again;
                }
                (_, Class::FixRequest) => {
                    ingest.counters.failed(Protocol::Kafka, why.code());
                    return Outcome::Refused(why.to_string());
                }
                _ => {}
            }
            self.stats.write_waits.fetch_add(1, Relaxed);
            self.say(&why);
            let told = why.retry_after().map_or(Duration::ZERO, SpanNs::as_duration);
            let pause = Duration::from_millis(back_off(attempt, PAUSE_FIRST_MS, PAUSE_MAX_MS));
            tokio::time::sleep(pause.max(told.min(TOLD_PAUSE_MAX))).await;
            attempt += 1;
        }
    }

    /// Counts what of a batch that is stored is not, once it is known for good.
    fn tell(&mut self, read: &Read) {
        if read.unreadable > 0 {
            let (offset, why) = read.reasons.first().cloned().unwrap_or_default();
            self.refuse("unreadable", read.unreadable, offset, &why);
        }
        let tenant = &self.topic.tenant;
        self.ingest.refused(Protocol::Kafka, tenant, &read.texts);
        self.ingest.refused(Protocol::Kafka, tenant, &read.adapted.rejected);
        self.say_rejected(read);
    }

    /// Rows that were refused beside others of their record: counted elsewhere, and named here.
    fn say_rejected(&mut self, read: &Read) {
        let now = tokio::time::Instant::now();
        let is_said = self.refused_said.is_some_and(|at| now < at + REFUSED_SAID_PAUSE);
        if read.adapted.rejected.is_empty() || is_said {
            return;
        }
        self.refused_said = Some(now);
        tracing::warn!(
            source = self.source,
            topic = self.topic.name,
            partition = self.partition,
            refused = read.adapted.rejected.summary(SHOWN_MAX),
            "parts of records are refused; hindcast_ingest_refused_items_total{{protocol=\"kafka\"}} counts them"
        );
    }

    fn say(&mut self, why: &IngestError) {
        let now = tokio::time::Instant::now();
        if self.said.is_none_or(|at| now > at + SAID_PAUSE) {
            self.said = Some(now);
            tracing::warn!(
                source = self.source,
                topic = self.topic.name,
                partition = self.partition,
                %why,
                "a partition waits until its records can be stored"
            );
        }
    }
}

/// `is_charged`: the tenant's buckets gave what it takes, in this attempt or in one before.
async fn write(
    ingest: &IngestState,
    batch: &Batch,
    bytes: usize,
    is_charged: &mut bool,
) -> Result<Written, IngestError> {
    if !*is_charged {
        ingest.charge_batch(batch)?;
        *is_charged = true;
    }
    let _place = ingest.let_in(bytes).await?;
    let lay = |naming| Intake::of_batch(batch, ingest.sink.ids(), naming);
    let written = ingest
        .sink
        .write_intake(lay(Naming::Known), &|| lay(Naming::Defined))
        .await;
    written.map_err(Into::into)
}

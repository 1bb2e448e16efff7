//! Runs the writers and measures them.
//!
//! A writer fills its next body while the last one is on its way, and waits for the answer before it sends that.
//! The clock runs from the first send to the last answer.

use super::send::{Sender, Sent};
use super::{now_ms, usage_of};
use crate::body::Template;
use crate::cli::{IngestArgs, Output};
use crate::fleet::{Motion, Values, series_of};
use crate::report::{IngestReport, PER_SECOND_MAX, Shape, Tally, server};
use anyhow::{Context, bail};
use bytes::Bytes;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A few hosts' series: one request per sweep.
struct Lot {
    template: Template,
    values: Values,
}

/// When no further request is begun.
enum Until {
    Time(Duration),
    Samples(u64),
}

/// What the writers share.
struct Shared {
    until: Until,
    begun: Instant,
    claimed: AtomicU64,
    acked: AtomicU64,
    /// One writer's failure ends the run for all.
    failed: AtomicBool,
    done: AtomicBool,
}

/// What one writer has to say, request after request.
struct Writer {
    name: String,
    lots: Vec<Lot>,
    start_ms: i64,
    interval_ms: i64,
}

struct Filled {
    /// Which lot it is of, and what names that lot's series on a stream.
    lot: usize,
    definitions: Bytes,
    body: Bytes,
    samples: u64,
    at_ms: i64,
}

impl Shared {
    /// Whether one more request is begun.
    fn claim(&self, samples: u64) -> bool {
        if self.failed.load(Ordering::Relaxed) {
            return false;
        }
        match self.until {
            Until::Time(span) => self.begun.elapsed() < span,
            Until::Samples(max) => self.claimed.fetch_add(samples, Ordering::Relaxed) < max,
        }
    }
}

impl Writer {
    /// Request number `n` of this writer, from 0.
    fn fill(&mut self, n: usize) -> anyhow::Result<Filled> {
        let lots = self.lots.len();
        let lot = &mut self.lots[n % lots];
        let at_ms = self.start_ms + self.interval_ms * i64::try_from(n / lots)?;
        let body = lot.template.fill(&self.name, n as u64 + 1, at_ms, lot.values.sweep())?;
        Ok(Filled {
            lot: n % lots,
            definitions: lot.template.definitions().clone(),
            body,
            samples: lot.template.samples() as u64,
            at_ms,
        })
    }

    async fn run(self, mut sender: Sender, shared: Arc<Shared>, end_ms: i64) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        let (mut writer, mut next) = self.filled(0).await?;
        for n in 1.. {
            if next.at_ms > end_ms {
                tally.ran_out = true;
                break;
            }
            if !shared.claim(next.samples) {
                break;
            }
            let filling = tokio::spawn(writer.filled(n));
            let begun = Instant::now();
            let sent = sender
                .send(&next.body, (next.lot, &next.definitions), next.samples)
                .await;
            let took = begun.elapsed();
            let sent = sent.inspect_err(|_| shared.failed.store(true, Ordering::Relaxed))?;
            note(&mut tally, &shared, &next, sent, took);
            (writer, next) = filling.await??;
        }
        Ok(tally)
    }

    /// Away from the threads that wait for sockets.
    async fn filled(mut self, n: usize) -> anyhow::Result<(Self, Filled)> {
        tokio::task::spawn_blocking(move || {
            let filled = self.fill(n)?;
            Ok((self, filled))
        })
        .await?
    }
}

fn note(tally: &mut Tally, shared: &Shared, request: &Filled, sent: Sent, took: Duration) {
    shared.acked.fetch_add(sent.samples, Ordering::Relaxed);
    tally.acked += sent.samples;
    tally.requests += 1;
    tally.retries += sent.retries;
    tally.refused += request.samples.saturating_sub(sent.samples);
    tally.refused_first = tally.refused_first.take().or(sent.refused);
    tally.bytes += request.body.len() as u64;
    tally
        .latencies
        .note(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    tally.note_time(request.at_ms);
}

/// The fleet, cut into lots that go round the writers.
fn writers(args: &IngestArgs, start_ms: i64) -> anyhow::Result<Vec<Writer>> {
    // A run's own names: the requests of an earlier run are not taken for retries of these.
    let name = |n: usize| format!("bench-{}-{start_ms}-{n}", args.seed);
    let mut writers: Vec<Writer> = (0..args.writers)
        .map(|n| Writer {
            name: name(n),
            lots: vec![],
            start_ms,
            interval_ms: args.interval.as_ms() as i64,
        })
        .collect();
    for (n, first) in (0..args.hosts).step_by(args.batch_hosts).enumerate() {
        let hosts = first..args.hosts.min(first + args.batch_hosts);
        let (labels, motions): (Vec<_>, Vec<Motion>) = hosts
            .flat_map(|host| series_of(args.seed, host, args.series_per_host))
            .map(|s| (s.labels, s.motion))
            .unzip();
        let of_writer = &writers[n % args.writers].lots;
        let first_ref = of_writer.iter().map(|l| l.template.samples() as u32).sum();
        let lot = Lot {
            template: Template::new(args.wire(), &labels, first_ref)?,
            values: Values::new(args.seed, n as u64, motions.into_iter()),
        };
        writers[n % args.writers].lots.push(lot);
    }
    Ok(writers)
}

/// A line for each second on stderr; ends with what was confirmed in each.
async fn progress(shared: Arc<Shared>) -> Vec<u64> {
    let (mut before, mut list) = (0, vec![]);
    let mut ticks = tokio::time::interval_at(shared.begun + Duration::from_secs(1), Duration::from_secs(1));
    while !shared.done.load(Ordering::Relaxed) {
        ticks.tick().await;
        if shared.done.load(Ordering::Relaxed) {
            break;
        }
        let acked = shared.acked.load(Ordering::Relaxed);
        eprintln!(
            "{:>4} s  {:>10} samples/s  {acked:>12} acknowledged",
            shared.begun.elapsed().as_secs(),
            acked - before
        );
        if list.len() < PER_SECOND_MAX {
            list.push(acked - before);
        }
        before = acked;
    }
    list
}

pub async fn run(args: IngestArgs) -> anyhow::Result<ExitCode> {
    if let Err(why) = args.check() {
        bail!(why);
    }
    let usages = |args: &IngestArgs| {
        args.pid
            .iter()
            .map(|p| usage_of(&p.to_string()))
            .collect::<Result<Vec<_>, _>>()
    };
    let end_ms = now_ms();
    let back_ms = i64::try_from(args.back.as_ms()).context("--back is too long")?;
    let writers = writers(&args, end_ms - back_ms)?;
    let samples_per_request = writers
        .iter()
        .flat_map(|w| &w.lots)
        .map(|l| l.template.samples())
        .max()
        .unwrap_or(0);
    let senders = (0..args.writers)
        .map(|n| Sender::new(args.wire(), &args.endpoint, &args.tenant, n))
        .collect::<Result<Vec<_>, _>>()?;

    let before = usages(&args)?;
    let client_before = usage_of("self").ok();
    let shared = Arc::new(Shared {
        until: args
            .samples
            .map_or(Until::Time(Duration::from_secs(args.seconds)), Until::Samples),
        begun: Instant::now(),
        claimed: AtomicU64::new(0),
        acked: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        done: AtomicBool::new(false),
    });
    let watcher = tokio::spawn(progress(shared.clone()));
    let running: Vec<_> = writers
        .into_iter()
        .zip(senders)
        .map(|(writer, sender)| tokio::spawn(writer.run(sender, shared.clone(), end_ms)))
        .collect();
    let mut tally = Tally::default();
    let mut failure = None;
    for writer in running {
        match writer.await? {
            Ok(one) => tally.add(one),
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    let seconds = shared.begun.elapsed().as_secs_f64();
    shared.done.store(true, Ordering::Relaxed);
    if let Some(failure) = failure {
        return Err(failure.context("the run was broken off; there are no figures"));
    }
    let client = client_before
        .zip(usage_of("self").ok())
        .map(|(a, b)| b.cpu_seconds - a.cpu_seconds);
    let after = usages(&args)?;
    let servers = args
        .pid
        .iter()
        .zip(before.into_iter().zip(after))
        .map(|(pid, (a, b))| server(*pid, a, b))
        .collect();
    let shape = Shape {
        protocol: args.wire(),
        endpoints: args.endpoint.len(),
        writers: args.writers,
        series: args.hosts * args.series_per_host,
        samples_per_request,
    };
    let report = IngestReport::new(shape, tally, seconds, client, servers, watcher.await?);
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&report)?),
        Output::Text => println!("{}", report.line()),
    }
    if let Some(why) = &report.refused_first {
        eprintln!("refused: {why}");
    }
    Ok(if report.samples_refused > 0 || report.samples_acked == 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
